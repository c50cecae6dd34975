"""What all pages' tests share."""

from __future__ import annotations

from playwright.sync_api import expect

# Playwright waits 5 s for what a page shows; a model's first answer on a busy machine takes longer.
expect.set_options(timeout=60_000)
