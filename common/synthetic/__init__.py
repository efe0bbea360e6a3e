"""How the bundled model, rows and conversations of `pocket` were made. Nothing that a user runs imports it."""
