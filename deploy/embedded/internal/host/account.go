// Package host is what the embedded parts need from the machine that they run
// on: an account for programs that refuse root, directories that this account
// can enter, free ports, locks between processes, and a place where large files
// are installed once. Unix only.
package host

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Account is the user that initdb and postgres run as. Nil is the caller
// itself, and every method accepts it.
type Account struct {
	name     string
	uid, gid uint32
}

// Unprivileged picks an account for programs that refuse to run as root. It is
// nil when the caller is not root. The account must be in the passwd database,
// because initdb looks its own user up there.
func Unprivileged() (*Account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return &Account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("running as root, which PostgreSQL refuses, and there is neither a user postgres nor a user nobody to run it as: run as an ordinary user, or create one of the two")
}

// Attr starts a child under the account and in a process group of its own, so
// that a Ctrl-C on the terminal does not reach it before its clients are closed.
func (a *Account) Attr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// Own hands a file or directory to the account.
func (a *Account) Own(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// CanReach reports, by name, the directory on the way to dir that the account
// cannot enter: root's home and testing.T.TempDir usually are such.
func (a *Account) CanReach(dir string) error {
	if a == nil {
		return nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return err
	}
	for d := real; ; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no owner known", d)
		}
		owns := st.Uid == a.uid && fi.Mode()&0o100 != 0
		if fi.Mode()&0o001 == 0 && !owns {
			return fmt.Errorf("the user %s, under which PostgreSQL runs when its caller is root, cannot enter %s: choose another directory than %s", a.name, d, dir)
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}

// MkdirAll makes dir and what is missing on the way enterable by everyone,
// whatever the umask: the account is another user than the caller. What was
// there before keeps its mode.
func MkdirAll(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := MkdirAll(parent); err != nil {
			return err
		}
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) { // another process was faster, or it is no directory
		return os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// BaseDir is where the embedded parts keep what they fetch and, by default,
// their data: app below the caller's cache directory or, for a root whose home
// the unprivileged account cannot enter, a directory below /var/tmp that only
// root can write. It is created.
func BaseDir(app string) (string, error) {
	account, err := Unprivileged()
	if err != nil {
		return "", err
	}
	cache, cacheErr := os.UserCacheDir()
	if cacheErr == nil {
		dir := filepath.Join(cache, app)
		cacheErr = MkdirAll(dir)
		if cacheErr == nil {
			cacheErr = account.CanReach(dir)
		}
		if cacheErr == nil {
			return dir, nil
		}
	}
	if account == nil {
		return "", fmt.Errorf("no usable cache directory, set XDG_CACHE_HOME: %w", cacheErr)
	}
	dir := filepath.Join("/var/tmp", app+"-root")
	if err := MkdirAll(dir); err != nil {
		return "", err
	}
	fi, err := os.Lstat(dir) // /var/tmp is everybody's: somebody else may have put it there first
	if err != nil {
		return "", err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || !fi.IsDir() || st.Uid != 0 || fi.Mode()&0o022 != 0 {
		return "", fmt.Errorf("%s is not a directory that only root can write: remove it", dir)
	}
	return dir, nil
}
