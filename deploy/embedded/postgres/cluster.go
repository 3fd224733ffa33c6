package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// cluster is what stands in Config.Dir: the data directory and the password.
type cluster struct {
	dir     string
	account *host.Account
}

func (c cluster) data() string { return filepath.Join(c.dir, "pgdata") }

// major is the version that made the data directory, 0 when there is none.
func (c cluster) major() (int, error) {
	b, err := os.ReadFile(filepath.Join(c.data(), "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s/PG_VERSION: %w", c.data(), err)
	}
	return major, nil
}

// password is the superuser's.
func (c cluster) password() (string, error) { return host.Password(filepath.Join(c.dir, "pgpassword")) }

// init runs initdb beside the data directory and renames the result, so that
// what a killed initdb leaves is never taken for a cluster.
func (c cluster) init(ctx context.Context, bin, password string) error {
	tmp := c.data() + ".init"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	passwordFile := filepath.Join(c.dir, "pgpassword.init")
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(passwordFile)
	if err := errors.Join(c.account.Own(tmp), c.account.Own(passwordFile)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", tmp, "-U", user,
		"-A", "scram-sha-256", "--pwfile", passwordFile, "-E", "UTF8", "--locale=C", "--no-sync")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = c.dir, environ(c.dir), c.account.Attr()
	if out, err := child.Output(cmd); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	return os.Rename(tmp, c.data())
}

// ready looks where pg_ctl looks: line 1 of postmaster.pid is the server's
// process id, line 8 its state.
func (c cluster) ready(pid int) bool {
	b, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	return len(lines) > 7 && lines[0] == strconv.Itoa(pid) && strings.TrimSpace(lines[7]) == "ready"
}

// environ drops what could redirect the server (PGDATA, PGPORT, ...) or change
// the language of its messages.
func environ(home string) []string {
	env := []string{"HOME=" + home, "LC_ALL=C"}
	for _, kv := range os.Environ() {
		switch k, _, _ := strings.Cut(kv, "="); k {
		case "PATH", "TMPDIR", "LD_LIBRARY_PATH":
			env = append(env, kv)
		}
	}
	return env
}
