"""`zander relay` and `zander watch`: what a person runs in a terminal. They know only the client."""
