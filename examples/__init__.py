"""Examples; ``make demo`` runs them."""
