"""An application that was written for the daemon, as its users have it."""

import asyncio
import logging

from cleanup.engine import ResultCleanupDaemon

logging.basicConfig(level=logging.INFO)


class MyApplication:
    def __init__(self):
        self.cleanup_daemon = ResultCleanupDaemon(
            check_interval=6 * 3600,  # 6 hours
            cache_dir="~/.omnimemory/cached_results",
        )

    async def start(self):
        """Start application and cleanup daemon"""
        await self.cleanup_daemon.start()
        print("✓ Cleanup daemon started")  # noqa: T201

        # Your application logic here
        await self.run_application()

    async def stop(self):
        """Graceful shutdown"""
        await self.cleanup_daemon.stop()
        print("✓ Cleanup daemon stopped")  # noqa: T201

    async def run_application(self):
        """Main application loop"""
        try:
            while True:
                await asyncio.sleep(60)

                # Optionally: Get cleanup stats
                stats = self.cleanup_daemon.get_stats()
                if stats["total_deleted"] > 0:
                    print(f"Freed {stats['total_freed_mb']} MB so far")  # noqa: T201

        except KeyboardInterrupt:
            pass


async def main():
    app = MyApplication()

    try:
        await app.start()
    finally:
        await app.stop()


if __name__ == "__main__":
    asyncio.run(main())
