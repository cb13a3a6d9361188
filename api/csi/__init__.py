"""The plugin of the Container Storage Interface: Cistern volumes for Kubernetes and other orchestrators."""
