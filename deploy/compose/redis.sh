#!/bin/sh
# Starts Redis in a container as deploy/redis says, with the passwords of the
# environment. They are put into a copy of users.acl in memory, as hashes; a user
# without one cannot log in.
set -eu
umask 077

users=/tmp/users.acl
cp /etc/redis/users.acl "$users"

# allow USER PASSWORD
allow() {
    [ -n "$2" ] || return 0
    hash=$(printf %s "$2" | sha256sum | cut -c1-64)
    sed "s/^user $1 on/& #$hash/" "$users" >"$users.new"
    mv "$users.new" "$users"
}
allow executor "$EXECUTOR_PASSWORD"
allow operator "$OPERATOR_PASSWORD"
allow web "$WEB_PASSWORD"
allow signalr "$SIGNALR_PASSWORD"
unset EXECUTOR_PASSWORD OPERATOR_PASSWORD WEB_PASSWORD SIGNALR_PASSWORD REDISCLI_AUTH

# The container's directories, and all of its addresses: its network is private,
# and no port is published.
conf=/tmp/redis.conf
sed '/^\(bind\|dir\|aclfile\) /d' /etc/redis/redis.conf >"$conf"
printf '%s\n' 'bind * -::*' 'dir /data' "aclfile $users" >>"$conf"
exec redis-server "$conf"
