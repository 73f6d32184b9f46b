"""Python environments and processes for packages that need another torch."""
