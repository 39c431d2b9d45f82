"""The policies, schema, tenants and budgets that a fresh deployment starts with. Data only; nothing here is code."""
