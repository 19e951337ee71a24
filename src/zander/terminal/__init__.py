"""The commands `zander relay` and `zander watch`; of Zander they use only the client."""
