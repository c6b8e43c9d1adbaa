"""From run records to pages: evidence, claims, tables, and the checks of a published run."""
