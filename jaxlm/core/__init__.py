"""The ground floor: errors, registry, configuration, parameter specs, types. Import the modules by name; nothing is re-exported here."""
