"""Scenario files that ship beside the policy that they test."""
