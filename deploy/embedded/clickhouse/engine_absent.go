//go:build !linux || !(amd64 || arm64) || noembedded

package clickhouse

import "errors"

// available says whether this build has the engine.
func available() error {
	return errors.New("this build has no embedded ClickHouse: build on Linux without the tag noembedded, or name the address of a running ClickHouse")
}

func (e engine) run() error { return available() }
