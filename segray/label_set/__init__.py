"""The label set in storage: schema, snapshots, plans, commits, maintenance. deltalake lives here."""
