package config

import _ "embed" // the starting configuration

// Template is a commented configuration to start from. It needs documents.sql and routes.yaml beside it.
//
//go:embed shelfwire.yaml
var Template string
