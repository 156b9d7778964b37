package redistest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// admin may do everything. It is not among the users we ship.
const admin = "admin"

// StartShipped runs a redis-server with the configuration and the users of
// deploy/redis, so that what is shipped is what is tested. Connections are those
// of Login; further arguments come last and win, as with StartWith.
func StartShipped(t testing.TB, args ...string) *Server {
	t.Helper()
	dir, err := deployed()
	if err != nil {
		t.Fatal(err)
	}
	users, err := os.ReadFile(filepath.Join(dir, "users.acl"))
	if err != nil {
		t.Fatal(err)
	}
	acl := filepath.Join(t.TempDir(), "users.acl")
	if err := os.WriteFile(acl, []byte(withPasswords(string(users))), 0o600); err != nil { //nolint:gosec // the test's own directory
		t.Fatal(err)
	}
	return launchServer(t, filepath.Join(dir, "redis.conf"), append([]string{"--aclfile", acl}, args...))
}

// Login is the connection string of one of the shipped users, or of "admin".
func (s *Server) Login(user string) string {
	return s.Addr() + ",user=" + user + ",password=" + password(user)
}

func password(user string) string { return "password-of-" + user }

// withPasswords does what the README of deploy/redis says to do, for all users.
func withPasswords(users string) string {
	users = regexp.MustCompile(`(?m)^user \S+ on`).ReplaceAllStringFunc(users, func(line string) string {
		return line + " #" + hash(strings.Fields(line)[1])
	})
	return users + "user " + admin + " on #" + hash(admin) + " ~* &* +@all\n"
}

func hash(user string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(password(user)))) }

// deployed finds deploy/redis in one of the directories above the test's.
func deployed() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		dir := filepath.Join(at, "deploy", "redis")
		if _, err := os.Stat(filepath.Join(dir, "users.acl")); err == nil {
			return dir, nil
		}
		above := filepath.Dir(at)
		if above == at {
			return "", errors.New("no directory above the test's holds deploy/redis/users.acl")
		}
		at = above
	}
}
