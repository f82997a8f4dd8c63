-- A database of the first schema as volmig wrote it: volumes, migrations under way, what they hold.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE backends (
	address VARCHAR(255) NOT NULL, 
	storage_identity TEXT NOT NULL, 
	PRIMARY KEY (address)
);
INSERT INTO "backends" VALUES('host1@fast','storage 1');
INSERT INTO "backends" VALUES('host2@slow','storage 2');
CREATE TABLE journal (
	migration_id VARCHAR(255) NOT NULL, 
	sequence BIGINT NOT NULL, 
	kind VARCHAR(255) NOT NULL, 
	subject VARCHAR(255) NOT NULL, 
	actor VARCHAR(255) NOT NULL, 
	epoch BIGINT NOT NULL, 
	data JSON NOT NULL, 
	at BIGINT NOT NULL, 
	PRIMARY KEY (migration_id, sequence), 
	CONSTRAINT fk_journal_migration FOREIGN KEY(migration_id) REFERENCES migrations (id)
);
INSERT INTO "journal" VALUES('done',1,'phase','queued','ann',0,'{}',1795176000193456);
INSERT INTO "journal" VALUES('done',2,'phase','starting','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000223456);
INSERT INTO "journal" VALUES('done',3,'phase','migrating','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000243456);
INSERT INTO "journal" VALUES('done',4,'phase','completing','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000263456);
INSERT INTO "journal" VALUES('done',5,'phase','success','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000283456);
INSERT INTO "journal" VALUES('moving',1,'phase','queued','ann',0,'{}',1795176000333456);
INSERT INTO "journal" VALUES('moving',2,'phase','starting','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000363456);
INSERT INTO "journal" VALUES('moving',3,'phase','migrating','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000383456);
INSERT INTO "journal" VALUES('moving',4,'intent','copy','host1:77',1,'{"destination_id": "destination-moving"}',1795176000423456);
INSERT INTO "journal" VALUES('waiting',1,'phase','queued','ann',0,'{}',1795176000443456);
INSERT INTO "journal" VALUES('cancelling',1,'phase','queued','ann',0,'{}',1795176000463456);
INSERT INTO "journal" VALUES('cancelling',2,'phase','starting','host1:77',1,'{"n": [1, null, "\u00e9"]}',1795176000493456);
CREATE TABLE migrations (
	id VARCHAR(255) NOT NULL, 
	volume_id VARCHAR(255) NOT NULL, 
	source VARCHAR(255) NOT NULL, 
	destination VARCHAR(255) NOT NULL, 
	destination_id VARCHAR(255) NOT NULL, 
	method VARCHAR(255) NOT NULL, 
	phase VARCHAR(255) NOT NULL, 
	force_host_copy BOOLEAN NOT NULL, 
	lock_volume BOOLEAN NOT NULL, 
	engine VARCHAR(255) NOT NULL, 
	verify VARCHAR(255) NOT NULL, 
	bandwidth_limit_bytes BIGINT NOT NULL, 
	stage VARCHAR(255) NOT NULL, 
	bytes_total BIGINT NOT NULL, 
	bytes_done BIGINT NOT NULL, 
	rate_bytes DOUBLE NOT NULL, 
	eta_seconds DOUBLE, 
	digest_algorithm VARCHAR(255) NOT NULL, 
	source_digest VARCHAR(255) NOT NULL, 
	destination_digest VARCHAR(255) NOT NULL, 
	error_code VARCHAR(255) NOT NULL, 
	error_message TEXT NOT NULL, 
	error_hint TEXT NOT NULL, 
	requested_by VARCHAR(255) NOT NULL, 
	cancel_requested_by VARCHAR(255) NOT NULL, 
	owner VARCHAR(255) NOT NULL, 
	epoch BIGINT NOT NULL, 
	lease_expires_at BIGINT, 
	created_at BIGINT NOT NULL, 
	started_at BIGINT, 
	finished_at BIGINT, 
	updated_at BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "migrations" VALUES('done','volume-moved','host1@fast#pool1','host2@slow#pool2','destination-done','block','success',0,0,'auto','digest',5,'',0,0,0.0,NULL,'blake3','ab','ab','','','','ann','','',1,NULL,1795176000183456,NULL,1795176000293456,1795176000303456);
INSERT INTO "migrations" VALUES('moving','volume-moving','host1@fast#pool1','host2@slow#pool2','destination-moving','block','migrating',0,0,'auto','digest',0,'copy',3221225472,1073741824,150000000.0,13.5,'','','','','','','ann','','host1:77',1,1795176060343456,1795176000323456,1795176000403456,NULL,1795176000413456);
INSERT INTO "migrations" VALUES('waiting','volume-resting','host1@fast#pool1','host2@slow#pool2','destination-waiting','block','queued',0,0,'auto','digest',0,'',0,0,0.0,NULL,'','','','','','','ann','','',0,NULL,1795176000433456,NULL,NULL,1795176000433456);
INSERT INTO "migrations" VALUES('cancelling','volume-used','host1@fast#pool1','host2@slow#pool2','destination-cancelling','block','cancelling',0,0,'auto','digest',0,'',0,0,0.0,NULL,'','','','','','','ann','bob','host1:77',1,1795176060473456,1795176000453456,NULL,NULL,1795176000513456);
CREATE TABLE pools (
	address VARCHAR(255) NOT NULL, 
	reserved_bytes BIGINT NOT NULL, 
	releases BIGINT NOT NULL, 
	PRIMARY KEY (address), 
	CONSTRAINT ck_pools_reserved CHECK (reserved_bytes >= 0)
);
INSERT INTO "pools" VALUES('host2@slow#pool2',3221225472,1);
CREATE TABLE reservations (
	id VARCHAR(255) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT fk_reservations_pool FOREIGN KEY(host) REFERENCES pools (address)
);
INSERT INTO "reservations" VALUES('moving','host2@slow#pool2',3221225472);
CREATE TABLE retired (
	id VARCHAR(255) NOT NULL, 
	migration_id VARCHAR(255) NOT NULL, 
	volume_id VARCHAR(255) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	name_id VARCHAR(255) NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	provider_location TEXT, 
	provider_id TEXT, 
	identity TEXT, 
	format VARCHAR(255) NOT NULL, 
	delete_after BIGINT, 
	attempts BIGINT NOT NULL, 
	last_error TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "retired" VALUES('retired-1','done','volume-moved','host1@fast#pool1','volume-moved',1073741824,NULL,NULL,'42:7','raw',1795176000313456,2,'no route');
CREATE TABLE volumes (
	id VARCHAR(255) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	status VARCHAR(255) NOT NULL, 
	migration_status VARCHAR(255) NOT NULL, 
	name_id VARCHAR(255), 
	provider_location TEXT, 
	provider_id TEXT, 
	format VARCHAR(255) NOT NULL, 
	volume_type VARCHAR(255), 
	project_id VARCHAR(255), 
	metadata JSON NOT NULL, 
	attachments JSON NOT NULL, 
	snapshots JSON NOT NULL, 
	migration_id VARCHAR(255), 
	status_reason TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "volumes" VALUES('volume-resting','データ',1073741824,'host1@fast#pool1','available','none',NULL,NULL,NULL,'raw',NULL,'p','{"k": "v"}','[]','[{"id": "s1", "name": "monday"}]',NULL,'',1795176000133456,1795176000133456,1);
INSERT INTO "volumes" VALUES('volume-used','used',2147483648,'host1@fast#pool1','in-use','none',NULL,'/exports/1',NULL,'raw',NULL,NULL,'{}','[{"id": "a1", "instance": "vm", "mountpoint": "/dev/vdb"}]','[]',NULL,'',1795176000143456,1795176000143456,1);
INSERT INTO "volumes" VALUES('volume-moving','moving',3221225472,'host1@fast#pool1','available','migrating',NULL,NULL,NULL,'raw',NULL,NULL,'{}','[]','[]','moving','',1795176000153456,1795176000393456,2);
INSERT INTO "volumes" VALUES('volume-extending','ext',1073741824,'host2@slow#pool2','extending','none',NULL,NULL,NULL,'raw',NULL,NULL,'{}','[]','[]',NULL,'x',1795176000163456,1795176000163456,1);
INSERT INTO "volumes" VALUES('volume-moved','moved',1073741824,'host2@slow#pool2','available','success','destination-done',NULL,NULL,'raw',NULL,NULL,'{}','[]','[]',NULL,'',1795176000173456,1795176000173456,1);
CREATE INDEX ix_volumes_host ON volumes (host, created_at, id);
CREATE INDEX ix_volumes_project ON volumes (project_id, created_at, id);
CREATE INDEX ix_volumes_name ON volumes (name, created_at, id);
CREATE INDEX ix_volumes_created ON volumes (created_at, id);
CREATE INDEX ix_migrations_created ON migrations (created_at, id);
CREATE INDEX ix_migrations_phase ON migrations (phase, created_at, id);
CREATE INDEX ix_migrations_volume ON migrations (volume_id, created_at, id);
CREATE INDEX ix_retired_due ON retired (delete_after);
CREATE INDEX ix_reservations_host ON reservations (host);
COMMIT;
