"""Reader of Photoshop documents."""
