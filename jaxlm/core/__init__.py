"""The ground floor: errors, registry, configuration, parameter specs, types. Its modules are imported by name."""
