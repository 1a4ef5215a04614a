"""Chapter 08: learning one task after another, how much is forgotten, and a class forgotten on purpose."""
