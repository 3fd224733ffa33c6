package host

import (
	"crypto/rand"
	"errors"
	"os"
)

// Password is what file holds: a random one that is made up at the first call
// and kept, readable for the caller alone. An empty file is what a kill between
// making and writing leaves, and counts as none.
func Password(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	password := rand.Text()
	return password, os.WriteFile(file, []byte(password), 0o600)
}
