"""The version of the contract between hidra and its plugins."""

API_VERSION = 1
