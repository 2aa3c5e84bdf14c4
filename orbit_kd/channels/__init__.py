"""Channels with names, and the rules by which layers hand them on: filed here before anybody files one of his own."""

from orbit_kd.channels import operations, rules, rules_kept  # noqa: F401  each files its rules
