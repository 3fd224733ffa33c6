package postgres

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A stream that is cut off before it brought anything makes the next one more patient, or it would be cut off for ever.
func TestStreamThatIsCutOffMakesTheNextMorePatient(t *testing.T) {
	s := &Source{cfg: Config{}.withDefaults()}
	cut := fmt.Errorf("read: %w", io.EOF)
	require.Equal(t, 4*time.Second, s.nextTimeout())
	s.streamFailed(cut, false)
	s.streamFailed(cut, false)
	require.Equal(t, 16*time.Second, s.nextTimeout())
	s.streamFailed(errors.New("a mistake in the protocol"), false)
	require.Equal(t, 16*time.Second, s.nextTimeout(), "another reason says nothing of time")
	s.streamFailed(cut, true)
	require.Equal(t, 4*time.Second, s.nextTimeout())
	for range 100 {
		s.streamFailed(cut, false)
	}
	require.Equal(t, 4*time.Second<<mostPatience, s.nextTimeout())
}
