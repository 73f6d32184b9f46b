"""The hot operations: native code behind typed functions, each beside its slow oracle."""
