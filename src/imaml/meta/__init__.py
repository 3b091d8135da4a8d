"""The meta-gradient: rules, certificates and methods."""
