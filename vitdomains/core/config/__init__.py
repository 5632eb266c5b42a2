"""The configuration: schema, YAML, parsing, validation, warnings on recipes."""
