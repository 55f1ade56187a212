"""Reader of LICA: components and their CSS, drawn."""
