"""What a request may say: strict models, one module for each family of routes."""
