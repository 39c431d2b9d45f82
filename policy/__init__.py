"""Who may do what with which model for which purpose: Cedar policies, obligations, budgets. Default deny."""
