// Package embedded runs the services that Shelfwire lives between, real ones,
// under one command and without containers.
package embedded

import "github.com/shelfwire/shelfwire/deploy/embedded/internal/host"

// BaseDir is the directory below which the embedded parts keep what they fetch:
// app in the user's cache directory or, for a root whose home PostgreSQL's
// account cannot enter, a directory below /var/tmp that only root can write.
// It is created. Data of embedded servers may go there too.
func BaseDir(app string) (string, error) { return host.BaseDir(app) }
