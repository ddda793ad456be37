"""Collectives as data: schedules that can be proven, costed, drawn, and executed on any transport."""
