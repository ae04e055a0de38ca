"""One file a method: its losses as pure functions, and the recipe that calls them."""
