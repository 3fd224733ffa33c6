package child

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// rolePrefix begins the name (argv[0]) of a process that Reexec started. It is
// what ps shows, and what tells such a process from one that a user started: no
// variable of the environment has to be read, or could be inherited by mistake.
const rolePrefix = "shelfwire-embedded-"

// Reexec is a command that runs this very executable again in a role of its
// own, which [Role] recognises there.
func Reexec(role string, config any) (*exec.Cmd, error) {
	b, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("configuration of the %s process: %w", role, err)
	}
	path := "/proc/self/exe" // this binary even when its file has been replaced since
	if runtime.GOOS != "linux" {
		if path, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	return &exec.Cmd{Path: path, Args: []string{rolePrefix + role, string(b)}}, nil
}

// Role reports whether this process was started by [Reexec] in the given role,
// and decodes its configuration.
func Role(role string, config any) (bool, error) {
	if len(os.Args) != 2 || os.Args[0] != rolePrefix+role {
		return false, nil
	}
	if err := json.Unmarshal([]byte(os.Args[1]), config); err != nil {
		return true, fmt.Errorf("configuration of the %s process: %w", role, err)
	}
	return true, nil
}
