"""The Grafana dashboard of fleetune."""
