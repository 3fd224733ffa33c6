// Package compose_test reads docker-compose.yml and the files that it mounts as their programs would, where no Docker
// is at hand.
package compose_test

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// root of the repository, where docker-compose.yml and the paths in it begin.
const root = "../.."

type service struct {
	Image       string
	Command     []string
	Environment map[string]string
	Volumes     []string
}

func services(t *testing.T) map[string]service {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	require.NoError(t, err)
	var file struct{ Services map[string]service }
	require.NoError(t, yaml.Unmarshal(b, &file))
	return file.Services
}

// mounts are the files and directories of the repository by their place in a container.
func (s service) mounts() map[string]string {
	out := map[string]string{}
	for _, v := range s.Volumes {
		if parts := strings.Split(v, ":"); strings.HasPrefix(parts[0], ".") {
			out[parts[1]] = filepath.Join(root, parts[0])
		}
	}
	return out
}

func TestWhatIsMountedIsThere(t *testing.T) {
	for name, s := range services(t) {
		for at, path := range s.mounts() {
			_, err := os.Stat(path)
			require.NoError(t, err, "%s: %s", name, at)
		}
	}
}

// configuration is what the container of Shelfwire loads.
func configuration(t *testing.T, s service) *config.Config {
	t.Helper()
	mounts := s.mounts()
	b, err := os.ReadFile(mounts["/etc/shelfwire/shelfwire.yaml"])
	require.NoError(t, err)
	reference, err := filepath.Abs(mounts["/etc/shelfwire/reference"])
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "shelfwire.yaml")
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(b), "/etc/shelfwire/reference", reference)), 0o600))
	c, err := config.Load(file, func(name string) (string, bool) {
		_, ok := s.Environment[name]
		return "secret", ok
	})
	require.NoError(t, err)
	return c
}

// Every address of the configuration is one at which a service of the file answers.
func TestTheConfigurationNamesTheServices(t *testing.T) {
	all := services(t)
	c := configuration(t, all["shelfwire"])
	host := func(address string) string {
		u, err := url.Parse(address)
		require.NoError(t, err)
		return u.Host
	}
	require.Equal(t, "postgres:5432", host(c.Source.URL.Reveal()))
	require.Equal(t, "postgres:5432", host(c.State.URL.Reveal()))
	require.Equal(t, "clickhouse:9000", host(c.ClickHouse.URL.Reveal()))
	require.Contains(t, c.Source.URL.Reveal(), "/"+all["postgres"].Environment["POSTGRES_DB"]+"?")
	require.Contains(t, c.ClickHouse.URL.Reveal(), "//"+all["clickhouse"].Environment["CLICKHOUSE_USER"]+":")
	require.Equal(t, []string{strings.TrimPrefix(all["kafka"].Environment["KAFKA_ADVERTISED_LISTENERS"], "PLAINTEXT://")}, c.Kafka.Brokers)
	require.Equal(t, 1, c.Kafka.Replication, "there is one broker")
	require.Contains(t, all["postgres"].Command, "wal_level=logical")
	for name, shop := range c.Shops {
		require.Equal(t, "http://shops:8080/"+name, shop.URL)
		require.Contains(t, all["shops"].Command, "--token="+shop.Token.Reveal())
		require.True(t, slices.ContainsFunc(all["shops"].Command, func(arg string) bool { return strings.HasPrefix(arg, "--shop="+name+"=") }), name)
	}
}

// What a broker keeps must lie in a volume: the image's default does not.
func TestDataLiesInVolumes(t *testing.T) {
	all := services(t)
	require.Contains(t, all["kafka"].Volumes, "kafka:"+all["kafka"].Environment["KAFKA_LOG_DIRS"])
	require.Contains(t, all["shops"].Volumes, "shops:/data")
	require.Contains(t, all["shops"].Command, "--data=/data")
}

// The files that the image of Postgres runs in a new cluster, in the order of their names there, leave what the
// configuration needs: the state's database, the routed tables, and the stores under the names and locations of the shops.
func TestTheFirstStartOfPostgres(t *testing.T) {
	all := services(t)
	mounts := all["postgres"].mounts()
	var order []string
	for at := range mounts {
		require.Equal(t, "/docker-entrypoint-initdb.d", filepath.Dir(at))
		order = append(order, at)
	}
	slices.Sort(order)
	conn, err := pgx.Connect(t.Context(), embeddedtest.NewDatabase(t, embeddedtest.Postgres(t)))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	for _, at := range order {
		sql, err := os.ReadFile(mounts[at])
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), string(sql))
		require.NoError(t, err, at)
	}
	c := configuration(t, all["shelfwire"])
	state, err := url.Parse(c.State.URL.Reveal())
	require.NoError(t, err)
	var there bool
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`,
		strings.TrimPrefix(state.Path, "/")).Scan(&there))
	require.True(t, there, "the state's database")
	for _, r := range c.Routes {
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT to_regclass($1) IS NOT NULL`, r.Table).Scan(&there))
		require.True(t, there, r.Table)
	}
	rows, err := conn.Query(t.Context(), `
		SELECT '--shop=' || s.name || '=' || string_agg(l.location, ',' ORDER BY l.warehouse_id)
		FROM catalog.stores s JOIN catalog.warehouse_locations l ON l.store_id = s.id GROUP BY s.id ORDER BY s.id`)
	require.NoError(t, err)
	stores, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Len(t, stores, len(c.Shops))
	require.Subset(t, all["shops"].Command, stores)
	_, err = conn.Exec(t.Context(), `INSERT INTO catalog.stores (name) VALUES ('another')`)
	require.NoError(t, err, "the ids that are given do not stand in the way of those that are drawn")
}
