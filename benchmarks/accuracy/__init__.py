"""Quality: every engine is asked the same items, and each item's score is kept."""
