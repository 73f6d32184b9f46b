"""Python environments for packages that need another torch, and worker processes in them."""
