// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PCI driver: a VFIO variant driver that leaves DMA to the kernel. All that is
 * about who owns what of the device stands here.
 *
 * DMA: the kernel, from probe to remove. Unlike every other VFIO driver this one does
 * not set driver_managed_dma, so the PCI core takes the group for its default domain
 * before probe (which fails when VFIO owns the group already) and gives it back after
 * remove. A user who opens the VFIO device and binds it to an iommufd gets an emulated
 * access, which claims no group; attaching it to an IOAS is of no consequence to the
 * device's DMA. The legacy group attach is refused by the IOMMU core.
 *
 * BARs and bus mastering: nobody, or sessions that asked with DMAPROBE_ENABLE, or users of
 * VFIO, who reset the function. That holds for all functions of a bus, since VFIO may reset
 * with one those that it does not know to be in use.
 */
#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/vfio_pci_core.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_vfio_device {
	struct vfio_pci_core_device core;
	struct dmaprobe_device *dd;
};

static struct dmaprobe_device *to_dd(struct vfio_device *vdev)
{
	return container_of(vdev, struct dmaprobe_vfio_device, core.vdev)->dd;
}

#define REST_MS	200

/* Held for as long as it takes to enable a function, not for a reset. */
static DEFINE_MUTEX(registers_lock);
static LIST_HEAD(registers_list);	/* bound devices, under registers_lock */

/* Whether VFIO can reset one of the devices together with the other. */
static bool reset_together(const struct dmaprobe_device *a, const struct dmaprobe_device *b)
{
	return a == b || (a->bus && a->bus == b->bus);
}

/* Whether sessions have, or are about to have, any register that goes with @dd's. */
static bool sessions_have(const struct dmaprobe_device *dd)
{
	struct dmaprobe_device *other;

	list_for_each_entry(other, &registers_list, registers)
		if (reset_together(dd, other) && (other->enable_users || other->resting))
			return true;
	return false;
}

/* Whether a sibling has, or is just getting, another driver of VFIO's. */
static bool has_other_vfio_driver(struct pci_dev *pdev, const struct pci_driver *ours)
{
	bool found;

	/* Ports manage their DMA as well, but VFIO never has them. */
	if (pdev->hdr_type != PCI_HEADER_TYPE_NORMAL)
		return false;
	if (!device_trylock(&pdev->dev))
		return true;
	found = pdev->driver && pdev->driver != ours && pdev->driver->driver_managed_dma;
	device_unlock(&pdev->dev);
	return found;
}

/* Whether VFIO has any, or could: a sibling's other VFIO driver does not ask us. */
static bool vfio_has(const struct dmaprobe_device *dd)
{
	struct dmaprobe_device *other;
	struct pci_dev *sibling = NULL;
	bool found = false;

	list_for_each_entry(other, &registers_list, registers)
		if (reset_together(dd, other) && READ_ONCE(other->vfio_open))
			return true;
	while (!found && dd->bus && (sibling = pci_get_device(PCI_ANY_ID, PCI_ANY_ID, sibling)))
		found = sibling->bus == dd->bus && sibling != dd->pdev &&
			has_other_vfio_driver(sibling, dd->pdev->driver);
	pci_dev_put(sibling);
	return found;
}

/*
 * Make sure that no DMA that another user has set up is left in the device: it would go on
 * with bus mastering, and could meet this user's mappings.
 */
static int put_to_rest(const struct dmaprobe_device *dd, struct pci_dev *pdev)
{
	int ret = -ENODEV;

	/* Under its lock the device stays ours. */
	if (!device_trylock(&pdev->dev))
		return -EBUSY;
	if (!dd->unplugged) {
		pci_cfg_access_lock(pdev);
		ret = pci_reset_function_locked(pdev);
		pci_cfg_access_unlock(pdev);
	}
	device_unlock(&pdev->dev);
	if (ret && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	/* What a reset leaves behind all the same ends without bus mastering. */
	msleep(REST_MS);
	return 0;
}

static int enable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;
	int ret;

	if (dd->unplugged)
		return -ENODEV;
	if (s->enabled)
		return 0;
	if (dd->resting || vfio_has(dd))
		return -EBUSY;
	if (!dd->enable_users && dd->used && !uid_eq(dd->used_by, s->uid)) {
		struct pci_dev *pdev = pci_dev_get(dd->pdev);

		/* This keeps everybody else away while the lock is not held. */
		dd->resting = true;
		mutex_unlock(&registers_lock);
		ret = put_to_rest(dd, pdev);
		pci_dev_put(pdev);
		mutex_lock(&registers_lock);
		dd->resting = false;
		if (ret || dd->unplugged)
			return dd->unplugged ? -ENODEV : ret;
	}
	if (!dd->enable_users) {
		ret = pci_enable_device(dd->pdev);
		if (ret)
			return ret;
		pci_set_master(dd->pdev);
	}
	/* Of several users, any can have left something. */
	dd->used_by = dd->enable_users && !uid_eq(dd->used_by, s->uid) ? INVALID_UID : s->uid;
	dd->used = true;
	dd->enable_users++;
	s->enabled = true;
	return 0;
}

static void disable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;

	if (!s->enabled)
		return;
	s->enabled = false;
	if (--dd->enable_users)
		return;
	pci_clear_master(dd->pdev);
	pci_disable_device(dd->pdev);
}

int dmaprobe_op_enable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_enable *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;

	if (cmd->enable > 1)
		return -EINVAL;
	guard(mutex)(&registers_lock);
	if (cmd->enable)
		return enable(s);
	disable(s);
	return s->dd->unplugged ? -ENODEV : 0;
}

/* End the use of registers and bus mastering by a session. */
void dmaprobe_disable(struct dmaprobe_session *s)
{
	guard(mutex)(&registers_lock);
	disable(s);
}

static int dmaprobe_vfio_open_device(struct vfio_device *vdev)
{
	struct vfio_pci_core_device *core = container_of(vdev, struct vfio_pci_core_device, vdev);
	struct dmaprobe_device *dd = to_dd(vdev);
	int ret;

	scoped_guard(mutex, &registers_lock) {
		if (sessions_have(dd))
			return -EBUSY;
		dd->vfio_open = true;
		dd->used = true;
		dd->used_by = INVALID_UID;
	}
	ret = vfio_pci_core_enable(core);
	if (ret) {
		WRITE_ONCE(dd->vfio_open, false);
		return ret;
	}
	vfio_pci_core_finish_enable(core);
	return 0;
}

static void dmaprobe_vfio_close_device(struct vfio_device *vdev)
{
	vfio_pci_core_close_device(vdev);
	WRITE_ONCE(to_dd(vdev)->vfio_open, false);
}

static const struct vfio_device_ops dmaprobe_vfio_ops = {
	.name = "dmaprobe",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = dmaprobe_vfio_open_device,
	.close_device = dmaprobe_vfio_close_device,
	.ioctl = vfio_pci_core_ioctl,
	DMAPROBE_VFIO_REGION_INFO_OPS
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	DMAPROBE_VFIO_MATCH_OPS
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

/* Nobody has the VFIO device open any more. */
static void forget(struct dmaprobe_vfio_device *vdev)
{
	struct dmaprobe_device *dd = vdev->dd;

	scoped_guard(mutex, &registers_lock)
		list_del(&dd->registers);
	vfio_put_device(&vdev->core.vdev);
	put_device(&dd->dev);
}

static int dmaprobe_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dmaprobe_vfio_device *vdev;
	int ret;

	vdev = vfio_alloc_device(dmaprobe_vfio_device, core.vdev, &pdev->dev, &dmaprobe_vfio_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);
	vdev->dd = dmaprobe_device_create(pdev);
	if (IS_ERR(vdev->dd)) {
		ret = PTR_ERR(vdev->dd);
		vfio_put_device(&vdev->core.vdev);
		return ret;
	}

	dev_set_drvdata(&pdev->dev, &vdev->core);
	scoped_guard(mutex, &registers_lock)
		list_add(&vdev->dd->registers, &registers_list);
	ret = vfio_pci_core_register_device(&vdev->core);
	if (ret) {
		pci_err(pdev, "cannot register with VFIO: %pe\n", ERR_PTR(ret));
		goto err_forget;
	}
	ret = cdev_device_add(&vdev->dd->cdev, &vdev->dd->dev);
	if (ret) {
		pci_err(pdev, "cannot add the character device: %pe\n", ERR_PTR(ret));
		goto err_unregister;
	}
	return 0;

err_unregister:
	vfio_pci_core_unregister_device(&vdev->core);
err_forget:
	dmaprobe_device_unplug(vdev->dd);
	forget(vdev);
	return ret;
}

/*
 * Sessions end at once. Who has the VFIO device open is asked to close it, and waited for,
 * as with every VFIO driver; DMA faults meanwhile.
 */
static void dmaprobe_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);
	struct dmaprobe_vfio_device *vdev = container_of(core, struct dmaprobe_vfio_device, core);

	dmaprobe_device_unplug(vdev->dd);
	vfio_pci_core_unregister_device(core);
	forget(vdev);
}

/* Any device, but only one whose driver_override names this driver. */
static const struct pci_device_id dmaprobe_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_ANY_ID, PCI_ANY_ID) },
	{}
};
MODULE_DEVICE_TABLE(pci, dmaprobe_ids);

static struct pci_driver dmaprobe_driver = {
	.name = "dmaprobe",
	.id_table = dmaprobe_ids,
	.probe = dmaprobe_probe,
	.remove = dmaprobe_remove,
	.err_handler = &vfio_pci_core_err_handlers,
};

int dmaprobe_vfio_register(void)
{
	return pci_register_driver(&dmaprobe_driver);
}

void dmaprobe_vfio_unregister(void)
{
	pci_unregister_driver(&dmaprobe_driver);
}
