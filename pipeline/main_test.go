package pipeline

import (
	"testing"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }
