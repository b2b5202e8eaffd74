"""The proof: a hash chain of entries, written by `cleanup.stores` alone, and its checkpoints."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q


class AuditEntry(models.Model):
    """One link of the chain. Written once; PostgreSQL refuses UPDATE, DELETE and TRUNCATE by trigger."""

    seq = models.BigIntegerField(primary_key=True)
    #: Without an index: it rises with `seq`, so a moment is found by halving.
    at_us = models.BigIntegerField(help_text="Microseconds since 1970 UTC")
    actor = models.CharField(max_length=150)
    actor_kind = models.CharField(max_length=16)
    action = models.CharField(max_length=40)
    run = models.CharField(max_length=36, blank=True)
    item = models.CharField(max_length=36, blank=True)
    area = models.CharField(max_length=100, blank=True)
    path = models.TextField(blank=True)
    size = models.BigIntegerField(null=True, blank=True)
    policy_version = models.CharField(max_length=120, blank=True)
    reason = models.CharField(max_length=300, blank=True)
    #: Canonical JSON text, so that what was hashed is what is kept.
    evidence = models.TextField(default="{}")
    prev_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        ordering: ClassVar = ["-seq"]
        #: Not `db_index`, which on PostgreSQL adds a second index to each, for LIKE: nobody asks by that, and
        #: every entry of a run would pay for it.
        #: With `seq`, so that a page of a list is read in order and nothing is sorted.
        indexes: ClassVar = [
            models.Index(fields=["action", "seq"], name="cleanup_audit_action"),
            models.Index(fields=["run", "seq"], name="cleanup_audit_run"),
            models.Index(fields=["item"], name="cleanup_audit_item"),
            # What people did is little beside what the clock does, and is what is asked for.
            models.Index(
                fields=["actor", "seq"], condition=~Q(actor_kind="system"), name="cleanup_audit_person"
            ),
        ]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.seq} {self.action}"


class AuditHead(models.Model):
    """The end of the chain: the one row that every writer locks."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    seq = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64)
    #: When the whole chain was read last, and whether it was sound.
    verified_at = models.DateTimeField(null=True, blank=True)
    verified_sound = models.BooleanField(null=True, blank=True)
    #: The checkpoint at which a reading in slices goes on; empty: none is under way.
    verifying = models.BigIntegerField(null=True, blank=True)
    #: Who asked for the reading under way; empty: the clock did.
    asked_by = models.CharField(max_length=150, blank=True)
    #: What the last reading found (`operations.reading`), or why it could not be done.
    verified_report = models.JSONField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.seq}"


class AuditCheckpoint(models.Model):
    """A sealed stretch of the chain; it stays when the stretch was exported and its entries were removed."""

    number = models.BigIntegerField(primary_key=True)
    first_seq = models.BigIntegerField()
    last_seq = models.BigIntegerField()
    merkle_root = models.CharField(max_length=64)
    #: Hash of the entry `last_seq`.
    head_hash = models.CharField(max_length=64)
    #: Hash of the checkpoint before it.
    prev_hash = models.CharField(max_length=64)
    at_us = models.BigIntegerField()
    #: First 16 hex digits of the SHA-256 of the public key; empty = not signed.
    key_id = models.CharField(max_length=16, blank=True)
    #: Ed25519, hex.
    signature = models.CharField(max_length=128, blank=True)
    hash = models.CharField(max_length=64)
    #: The exported segment's file name and SHA-256; empty = never exported.
    segment = models.CharField(max_length=200, blank=True)
    segment_sha256 = models.CharField(max_length=64, blank=True)
    #: When the entries were removed, the export being what is left of them.
    pruned_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-number"]

    def __str__(self) -> str:
        return f"{self.number}: {self.first_seq}-{self.last_seq}"
