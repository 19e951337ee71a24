"""Sources of samples for `zander relay`."""
