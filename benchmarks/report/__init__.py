"""Measured rows as statistics, tables and pictures: in the terminal, in Markdown and as a page."""
