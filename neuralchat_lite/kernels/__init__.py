"""The operations of a decoder: native code behind typed functions, and a slow reference of each."""
