package clickhouse

import "github.com/shelfwire/shelfwire/deploy/embedded/internal/child"

// role of the process that is the engine.
const role = "clickhouse"

// engine is what that process is told.
type engine struct {
	Lib         string `json:"lib"`
	Data        string `json:"data"`
	ConfigFile  string `json:"config_file"`
	PortsFile   string `json:"ports_file"` // in the working directory; filled when ready
	HistoryFile string `json:"history_file"`
	TCPPort     int    `json:"tcp_port"`
	HTTPPort    int    `json:"http_port"`
}

// ChildHook must be the first statement of main and of TestMain. In a process
// that [Start] made to be the engine it runs it and never returns; in any other
// it does nothing.
func ChildHook() {
	var e engine
	child.Hook(role, &e, func() error { return e.run() })
}
