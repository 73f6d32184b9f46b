"""A server under the load of many clients."""
