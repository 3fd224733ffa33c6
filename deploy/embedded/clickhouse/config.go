package clickhouse

import (
	"bytes"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// user is the login of clients.
const user = "shelfwire"

// The engine is built without the YAML parser: XML it is. The caches are small
// because the catalog of a demo is. See the package comment for the log level.
const configXML = `<clickhouse>
  <log-level>warning</log-level>
  <logger><console>0</console><log>%[1]s</log><size>10M</size><count>1</count></logger>
  <users_config>%[2]s</users_config>
  <max_server_memory_usage>%[3]d</max_server_memory_usage>
  <mark_cache_size>67108864</mark_cache_size>
  <index_mark_cache_size>16777216</index_mark_cache_size>
  <primary_index_cache_size>67108864</primary_index_cache_size>
</clickhouse>
`

// A profile of the name default is required, and its settings are ClickHouse's.
const usersXML = `<clickhouse>
  <profiles><default></default></profiles>
  <users>
    <default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants></default>
    <%[1]s><password_sha256_hex>%[2]x</password_sha256_hex><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
      <access_management>1</access_management><named_collection_control>1</named_collection_control></%[1]s>
  </users>
  <quotas><default></default></quotas>
</clickhouse>
`

// layout names what lies in Config.Dir.
type layout struct{ dir string }

func (l layout) data() string   { return filepath.Join(l.dir, "data") }
func (l layout) conf() string   { return filepath.Join(l.dir, "conf") }
func (l layout) config() string { return filepath.Join(l.conf(), "config.xml") }
func (l layout) users() string  { return filepath.Join(l.conf(), "users.xml") }
func (l layout) stderr() string { return filepath.Join(l.dir, "stderr.log") }
func (l layout) log() string    { return filepath.Join(l.dir, "engine.log") }

// write makes the directories and the configuration. Users cannot be changed in
// a running engine, so the password is made up once and kept.
func (l layout) write(memoryLimit int64) (password string, err error) {
	for _, dir := range []string{l.conf(), l.data()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
	}
	if password, err = host.Password(filepath.Join(l.conf(), "password")); err != nil {
		return "", err
	}
	logFile, err := escape(l.log())
	if err != nil {
		return "", err
	}
	usersFile, err := escape(l.users())
	if err != nil {
		return "", err
	}
	return password, errors.Join(
		os.WriteFile(l.config(), fmt.Appendf(nil, configXML, logFile, usersFile, memoryLimit), 0o600),
		os.WriteFile(l.users(), fmt.Appendf(nil, usersXML, user, sha256.Sum256([]byte(password))), 0o600),
	)
}

func escape(s string) (string, error) {
	var b bytes.Buffer
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}
