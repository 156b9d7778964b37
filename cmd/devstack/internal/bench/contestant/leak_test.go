package contestant

import (
	"os"
	"testing"

	"github.com/nodpt/executor/cmd/devstack/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }
