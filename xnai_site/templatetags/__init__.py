"""Tags of the templates of the site."""
