"""One user's stream: the session and its rules, the last samples and notes, answers about them."""
