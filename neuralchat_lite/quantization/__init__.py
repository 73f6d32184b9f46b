"""How weights become codes: the configuration, and the algorithms."""
